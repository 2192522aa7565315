"""The `about:` block: what people should know of a project and no record can say."""

from __future__ import annotations

from mlops_ray.config.base import Config


class About(Config):
    """Texts for the model card, in the project's own words. A blank line begins a paragraph.

    Source of the headings: Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """

    owner: str | None = None
    """Person or team that answers for the model."""
    contact: str | None = None
    """Where questions and complaints go."""
    license: str | None = None
    intended_use: str | None = None
    """What the model is for, and who uses it."""
    out_of_scope: str | None = None
    """What it must not be used for."""
    factors: str | None = None
    """Groups, instruments or surroundings that matter for how well it works."""
    ethical_considerations: str | None = None
    caveats: str | None = None
    """Known weaknesses, and advice."""
