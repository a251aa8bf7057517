/* The list of devices that a cgroup of version 2 may open. Version 1 has a controller for it; here a small BPF program is the list. */
#pragma once

#include <stdbool.h>

#include "plan.h"

/* Let what is in the cgroup (a descriptor of its folder) open only these character devices, "1:3" or "136:*" (any minor), and make
 * no other. No device means no list. It ends with the cgroup. False: see fail.h. */
bool devices_limit(int cgroup, const struct strings *devices);
