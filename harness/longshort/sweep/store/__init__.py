"""The sweep folder: results that exist, whether they still hold, status."""
