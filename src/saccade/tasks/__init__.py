"""Lightning modules: what is trained, with which losses, and how it is judged."""
