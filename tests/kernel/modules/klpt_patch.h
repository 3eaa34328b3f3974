/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The body of every live patch here. A module includes it after it has said what it is:
 *   KLPT_REPLACE  true: atomic replace, as the cumulative patches of a distribution
 *   KLPT_VMLINUX  defined: patches the kernel's own cmdline_proc_show() (what /proc/cmdline shows)
 *   KLPT_MISSING  defined: patches a function that does not exist, so that the kernel refuses the patch
 *   KLPT_TARGET   defined: patches klpt_target
 *   KLPT_SLEEPS   defined: the new klpt_block_read() sleeps for good, so that its reader blocks the *removal* of the patch
 * A patched file answers with the name of the module that patched it. The new functions stand alone: a live patch
 * cannot use what is private to klpt_target.
 */
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/fs.h>
#include <linux/wait.h>

static const char klpt_name[] = KBUILD_MODNAME "\n";

#ifdef KLPT_VMLINUX
static int klpt_cmdline_proc_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "%s: this has been live patched\n", KBUILD_MODNAME);
	return 0;
}

static struct klp_func klpt_vmlinux_funcs[] = {
	{ .old_name = "cmdline_proc_show", .new_func = klpt_cmdline_proc_show },
#ifdef KLPT_MISSING
	{ .old_name = "klpt_no_such_function", .new_func = klpt_cmdline_proc_show },
#endif
	{ }
};
#endif

#ifdef KLPT_TARGET
#ifdef KLPT_SLEEPS
static DECLARE_WAIT_QUEUE_HEAD(klpt_never);
#endif

static noinline ssize_t klpt_new_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	/* who has read the old text to its end gets no more */
	return *pos ? 0 : simple_read_from_buffer(buf, len, pos, klpt_name, sizeof(klpt_name) - 1);
}

static noinline ssize_t klpt_new_block_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
#ifdef KLPT_SLEEPS
	if (!*pos && wait_event_interruptible(klpt_never, false))
		return -ERESTARTSYS;
#endif
	return klpt_new_read(file, buf, len, pos);
}

static noinline void klpt_new_kthread_wait(void)
{
	if (!kthread_should_stop())
		schedule_timeout_interruptible(3600 * HZ);
	barrier(); /* no tail call: this function is to be on the stack */
}

static struct klp_func klpt_target_funcs[] = {
	{ .old_name = "klpt_block_read", .new_func = klpt_new_block_read },
	{ .old_name = "klpt_killable_read", .new_func = klpt_new_read },
	{ .old_name = "klpt_state_read", .new_func = klpt_new_read },
	{ .old_name = "klpt_kthread_wait", .new_func = klpt_new_kthread_wait },
	{ }
};
#endif

static struct klp_object klpt_objects[] = {
#ifdef KLPT_VMLINUX
	{ .funcs = klpt_vmlinux_funcs },
#endif
#ifdef KLPT_TARGET
	{ .name = "klpt_target", .funcs = klpt_target_funcs },
#endif
	{ }
};

static struct klp_patch klpt_patch = { .mod = THIS_MODULE, .objs = klpt_objects, .replace = KLPT_REPLACE };

static int __init klpt_patch_init(void)
{
	return klp_enable_patch(&klpt_patch);
}

static void __exit klpt_patch_exit(void)
{
}

module_init(klpt_patch_init);
module_exit(klpt_patch_exit);
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Live patch of the tests of saltext-kgraft");
