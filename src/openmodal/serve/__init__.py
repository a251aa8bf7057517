"""`openmodal serve`: a door for programs that say `import modal`. The stock client, pointed here by
MODAL_SERVER_URL, uses our engines.

The client's own wheel has its messages and the bases of its services, so nothing is generated here.
Commands live in the agents, sandboxes in the engine: a door holds nothing that matters, may be
killed at any time, and any number of them may serve one engine.

    server      one port for gRPC and HTTP, and what becomes of errors
    access      tokens, and what a router's call may reach
    calls       how a method of ours serves calls of theirs
    ids         ids on the wire, made from ours and back
    fields      which fields of a message are honoured; any other that is set is refused by name
    control     apps, secrets, sandboxes
    images      Dockerfile lines to recipes; builds and their output
    router      commands and streams
    files       the file helper's operations
    logs        a line of JSON for each event
    kept        the little that is kept: recipes, uploaded files, named secrets
"""
