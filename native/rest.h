/* An idle sandbox that is paused, not ended: what its agent has to do with that. */
#pragma once

#include <stdbool.h>

/* It is idle: ask the supervisor for a pause, unless that was done. True: it was not. */
bool rest_wish(void);

/* Whether it has wished for one that it was not asked about yet; whether all is to stop. */
bool rest_is_wished(void);
bool rest_is_agreed(void);

/* Whether the idle time counts: no pause is under way. */
bool rest_counts(void);

/* What the supervisor says: `s`, is that so still; `w`, the sandbox goes on. */
void rest_hear(char word);

/* Whether the next turn of the loop is to look what is there, and wait for nothing. */
bool rest_is_asked(void);

/* After such a turn. `quiet`: there was nothing; `idle`: nothing has happened for the idle time. */
void rest_answer(bool quiet, bool idle);
