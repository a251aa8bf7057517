/* Whose ids a sandbox has: its slot (a number of its own on this machine), and the user namespace made from it. */
#pragma once

#include "plan.h"

#include <stdint.h>
#include <sys/types.h>

#define IDS_BASE 0x10000000U /* far above what any machine gives to people, services or /etc/subuid */
#define IDS_SIZE 65536U

/* Slots are numbers from FIRST_SLOT to LAST_SLOT. The ones before stay free: slot 1 has the address of the gateway. Every id of a slot
 * lies below 2^31: devpts of Linux 6.1 and 6.12 reads its `gid=` as a signed number and refuses a greater one. */
enum { FIRST_SLOT = 16, LAST_SLOT = 28671 };

static inline uint32_t slot_base(uint32_t slot) {
    return IDS_BASE + slot * IDS_SIZE;
}

/* Take a slot that no running sandbox has, by locking its byte of the file. Returns the descriptor that holds the lock: the
 * slot is free again when every copy of it is closed. -1: see fail.h. */
int slot_take(const char *path, uint32_t *slot);

/* The byte of a slot in the file says whether a sandbox with it has, or had, a network: whoever takes a slot that is marked cleans up
 * after a supervisor that was killed. Only the slot's owner may set the mark. `slots`: the file. */
bool slot_is_marked(int slots, uint32_t slot);
void slot_mark(int slots, uint32_t slot, bool marked);

/* Take each slot that is marked and free, for as long as `clean` has work with it; how many it cleaned. -1: see fail.h. */
int slots_clean(const char *path, bool (*clean)(void *context, uint32_t slot), void *context);

/* A user namespace with the slot's range, as a descriptor; nobody is in it yet. -1: see fail.h. `network`: NULL, or gets a new network
 * namespace whose interfaces are the user namespace's root's to change. */
int userns_make(uint32_t slot, int *network);

/* A user namespace for a mount on which one owner's files are the root's of the sandbox whose first id is `base`. -1: see fail.h. */
int userns_of_owner(uint32_t uid, uint32_t gid, uint32_t base);

/* Give the user namespace that process `pid` was cloned into its maps, as the plan says (`single` and `sub`). */
bool userns_map(const struct plan *plan, pid_t pid);

/* Become root of that user namespace, which others of this user made; false with errno. */
bool userns_enter(int userns);
