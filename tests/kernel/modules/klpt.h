/* SPDX-License-Identifier: GPL-2.0 */
/* The functions of klpt_target that the live patches replace. */
#include <linux/fs.h>

ssize_t klpt_block_read(struct file *file, char __user *buf, size_t len, loff_t *pos);
ssize_t klpt_killable_read(struct file *file, char __user *buf, size_t len, loff_t *pos);
ssize_t klpt_state_read(struct file *file, char __user *buf, size_t len, loff_t *pos);
void klpt_kthread_wait(void);
