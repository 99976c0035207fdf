"""``python -m lowrank_vit``."""

from lowrank_vit.cli import main

if __name__ == "__main__":
    main()
