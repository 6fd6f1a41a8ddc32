"""The web demo and its JSON API, on one server; needs the extra `demo`.

Nobody is told that it runs: Gradio counts its users unless the variables below are set before it is
imported.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
