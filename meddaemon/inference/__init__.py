"""From the files of a series to an analysed prediction.

Nothing here imports torch except what runs in `bundles` and the bundles themselves, which only the model child loads.
"""
