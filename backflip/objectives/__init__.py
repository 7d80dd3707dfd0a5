"""Pure torch losses: tensors in, named results out. They know no model, no configuration, no device."""
