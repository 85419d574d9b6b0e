"""Changes the description so that it is wrong, to see that this is noticed."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    raw_schema["components"]["schemas"]["Liveness"]["properties"]["live"] = {"type": "integer"}
