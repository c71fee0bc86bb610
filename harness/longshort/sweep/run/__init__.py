"""The driver, its workers and the engines they run on."""
