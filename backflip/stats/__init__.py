"""Numbers about votes and runs, with their uncertainty. numpy only: no model, no store."""
