/* Connections to what listens in the sandbox, for START_CONNECT and DIAL. */
#pragma once

#include <stdint.h>

/* A blocking connection to that port of loopback; -1 with errno. While nothing listens it tries again. */
int relay_connect(uint16_t port, uint64_t wait_ms);

/* In a process of its own: copies between it and the standard streams until both have ended. */
_Noreturn void relay_run(int fd);

/* In a process of its own: makes the link a connection to that port, or answers why it is none. */
_Noreturn void relay_serve(int link, uint16_t port, uint64_t wait_ms);
