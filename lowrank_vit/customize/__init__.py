"""Customised diffusion models: a frozen text-to-image model learns a new thing from a few images, by a small delta.

``deltas`` has the methods, one file each; ``text_to_image`` is what they change, from a folder of diffusers
(``diffusers_folder``) or the small model of the digits (``digits``). ``train``, ``sample`` and ``measure`` work on either.
"""
