"""Networks and methods: crops in, loss out."""
