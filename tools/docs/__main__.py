"""`python -m tools.docs`: writes the generated pages of docs/ again, and names those that changed."""

from __future__ import annotations

from tools.docs import write_pages

if __name__ == "__main__":
    for path in write_pages():
        print(path)
