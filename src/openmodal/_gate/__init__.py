"""The gate of one sandbox with an allow list: a process that makes its connections.

    main.py     begins; service.py goes on
    server.py   takes connections and DNS questions, judges, connects, copies, writes the log
    policy.py   what is allowed; hello.py, head.py, names.py: what is asked for (TLS, HTTP, DNS)
    resolver.py asks the machine's name servers

The native program (native/gate.c) starts the gate outside the sandbox, with two sockets from
inside. What comes over the sockets is hostile: every parser is strict, what is odd is denied,
memory and time per connection are bounded, and a fault ends that connection only. The gate imports
nothing but the standard library, so that it starts fast, and nothing of the rest of the package.
"""
