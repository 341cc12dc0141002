"""From the files of a series to an analysed prediction.

Nothing here imports torch except `monai_bundle` and the bundles themselves, which only the model child loads.
"""
