"""Cost estimates: how many tokens, FLOPs, bytes and hours a checkpoint takes."""
