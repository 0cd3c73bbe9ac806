"""What all tests share: hypothesis by profile. `--hypothesis-profile long` is for hours, the default is for minutes."""

from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=20_000, print_blob=True)
settings.load_profile("default")
