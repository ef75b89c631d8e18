"""Encoders without texts: how well their features tell labelled images apart, clean and attacked."""
