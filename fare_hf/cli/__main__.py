"""`python -m fare_hf.cli`: the same as `fare-hf`."""

from fare_hf.cli.main import main

if __name__ == "__main__":
    main()
