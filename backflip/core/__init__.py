"""What every floor speaks: records, protocols, configuration, errors, random numbers."""
