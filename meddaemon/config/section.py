"""What every section of the configuration is made of: the strictness of all, and the words that they share."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _ae_title(text: str) -> str:
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", text) or text != text.strip():
        raise ValueError(
            f"{text!r} is not an AE title: 1 to 16 ASCII characters, no backslash, no outer spaces (PS3.5 6.2)"
        )
    return text


def _network(text: object) -> object:
    if not isinstance(text, str):
        raise ValueError('must be an address or a network in quotes, such as "10.1.0.0/16"')
    return ip_network(text)


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Host = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s/]+$")]
Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Folder = Annotated[Path, Field(strict=False)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
File = str
"""Absolute once it is loaded; "" is none."""


class Section(BaseModel):
    """Values as they stand in the file: nothing converted, nothing unknown, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
