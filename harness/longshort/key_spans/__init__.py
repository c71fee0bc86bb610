"""The file of key-token spans that an evaluator finds in a corpus, for the task `longshort_longppl`."""
