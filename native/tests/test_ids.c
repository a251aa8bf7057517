/* Which ids and which address a slot gives. */
#include "kernel.h"
#include "check.h"
#include "ids.h"

int main(void) {
    /* Older kernels read an id in a mount option as a signed number (devpts' gid=, Linux 6.1 and 6.12), so none may reach 2^31. */
    CHECK(slot_base(LAST_SLOT) + IDS_SIZE - 1 <= (uint32_t)INT32_MAX);
    CHECK(slot_base(LAST_SLOT) > slot_base(FIRST_SLOT));
    /* The ranges of neighbours do not touch, and the address of a slot stays in 10.251.0.0/16. */
    CHECK(slot_base(FIRST_SLOT + 1) == slot_base(FIRST_SLOT) + IDS_SIZE);
    CHECK(LAST_SLOT <= UINT16_MAX);
    return finish("ids");
}
