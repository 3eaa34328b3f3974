// SPDX-License-Identifier: GPL-2.0
// The first patch of klpt_target, named as SUSE names its modules.
#define KLPT_REPLACE false
#define KLPT_TARGET
#include "klpt_patch.h"
