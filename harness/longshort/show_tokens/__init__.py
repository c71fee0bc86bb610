"""``longshort show-tokens``: one HTML page with a document's text, its tokens coloured by what was measured of them."""
