"""`openmodal mcp`: sandboxes as tools of chat clients, over the Model Context Protocol.

`sandboxes.py` has the sandboxes of a server and its operator's limits, `tools.py` what a model may
do with them, `server.py` the two transports. docs/integrations/mcp.md is the user's page.
"""
