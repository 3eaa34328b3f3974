// SPDX-License-Identifier: GPL-2.0
// The next cumulative patch, to go on to and back from.
#define KLPT_REPLACE true
#define KLPT_TARGET
#include "klpt_patch.h"
