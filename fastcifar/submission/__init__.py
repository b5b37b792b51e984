"""Prediction files for competitions: unlabelled images in, rows of id and class out."""
