// SPDX-License-Identifier: GPL-2.0
// Its new functions sleep: taking it away blocks on whoever is in them.
#define KLPT_REPLACE false
#define KLPT_TARGET
#define KLPT_SLEEPS
#include "klpt_patch.h"
