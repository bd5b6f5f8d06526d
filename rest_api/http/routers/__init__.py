"""HTTP routes, one module per resource. A parameter of a path is written `{code:segment}`."""

import rest_api.http.path_parameters  # noqa: F401 - registers `segment`
