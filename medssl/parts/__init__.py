"""Building blocks of methods: pure functions on tensors, which know nothing of files, networks or methods."""
