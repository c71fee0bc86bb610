"""Comparisons of `longshort.training` with the code that the methods' authors published."""
