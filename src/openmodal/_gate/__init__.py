"""The gate of one sandbox with an allow list: a process of its own, which makes the sandbox's allowed connections in its stead.

    main.py     begins; service.py goes on
    server.py   takes connections and DNS questions, judges, connects, copies, writes the log
    policy.py   what is allowed; hello.py, head.py, names.py: what is asked for (TLS, HTTP, DNS). Pure
    resolver.py asks the machine's name servers

The native program starts it (native/gate.c) outside of the sandbox, with two sockets from inside. What comes over them is
hostile: every parser is strict, what is odd is denied, memory and time per connection are bounded, and a fault ends that connection
only. It imports nothing but the standard library, so that it starts fast, and nothing of the rest of the package.
"""
