"""``longshort show-tokens``: one HTML page with the text of documents, each token coloured by a per-token value."""
