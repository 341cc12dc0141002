"""What the tests of the web role share."""

from hypothesis import settings

# Other tests may be using the machine: how long one example takes says nothing.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
