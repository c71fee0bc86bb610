"""What the robustness campaign tries, by command."""
