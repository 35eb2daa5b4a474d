"""Pure functions on tensors that methods are made of; nothing here knows files, networks or methods."""
