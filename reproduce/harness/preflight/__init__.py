"""Preflight: do this machine, this image and this cluster compute the first steps of every recipe?"""
