"""What the description of HTTP says of who may call: the schemes of OpenAPI 3.1, and the right that each path needs."""

import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from server.access.caller import RIGHT_OF, Right
from server.http.guard import OPEN

SCHEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `mfalcon token new`, or a JSON Web Token where the server has keys for these.",
    },
    "certificate": {
        "type": "mutualTLS",
        "description": "A client's certificate of one of the server's authorities, whose name is a caller's.",
    },
}
_METRICS: Final = "metrics"


def describe_security(app: FastAPI, open_paths: frozenset[str]) -> None:
    """Have an application's OpenAPI description name what proves who a caller is, and the right that each endpoint
    needs; none at open_paths, which anybody may GET.
    """
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema.setdefault("components", {})["securitySchemes"] = {name: dict(each) for name, each in SCHEMES.items()}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                # The endpoint's name, the path and the method, as FastAPI makes it.
                ending = re.sub(r"\W", "_", path) + f"_{method}"
                name = operation["operationId"].removesuffix(ending)
                right = Right.METRICS if name == _METRICS else RIGHT_OF.get(name)
                roles = [] if right is None else [right.value]
                is_open = path in OPEN | open_paths
                operation["security"] = [] if is_open else [{scheme: roles} for scheme in SCHEMES]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
