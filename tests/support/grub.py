"""The files of GRUB 2 in the form that SUSE's grub2-mkconfig gives them, in the parts that matter here."""

HEADER = """\
### BEGIN /etc/grub.d/00_header ###
set btrfs_relative_path="yes"
export btrfs_relative_path

if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi

if [ "${env_block}" ] ; then
  set env_block="(${root})${env_block}"
  export env_block
  load_env -f "${env_block}"
fi

if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}

if [ -n "$extra_cmdline" ]; then
  submenu "Bootable snapshot #$snapshot_num" {
    menuentry "If OK, run 'snapper rollback $snapshot_num' and reboot." { true; }
  }
fi
### END /etc/grub.d/00_header ###

### BEGIN /etc/grub.d/10_linux ###
"""
ENTRY = """\
menuentry 'SLES 12-SP3{more}'  --class sles --class gnu-linux --class os $menuentry_id_option 'gnulinux-{id}-1f' {{
\tload_video
\tset gfxpayload=keep
\tif [ x$feature_platform_search_hint = xy ]; then
\t  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2  1f
\telse
\t  search --no-floppy --fs-uuid --set=root 1f
\tfi
\techo\t'Loading Linux {release} ...'
\tlinux\t/boot/vmlinuz-{release} root=UUID=1f  ${{extra_cmdline}} splash=silent quiet showopts
\techo\t'Loading initial ramdisk ...'
\tinitrd\t/boot/initrd-{release}
}}
"""
SUBMENU = "submenu 'Advanced options for SLES 12-SP3' $menuentry_id_option 'gnulinux-advanced-1f' {\n"
FOOTER = """\
### END /etc/grub.d/10_linux ###

### BEGIN /etc/grub.d/30_uefi-firmware ###
if [ "$grub_platform" = "efi" ]; then
\tmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
\t\tfwsetup
\t}
fi
### END /etc/grub.d/30_uefi-firmware ###

### BEGIN /etc/grub.d/80_suse_btrfs_snapshot ###
if [ -f  "/.snapshots/grub-snapshot.cfg" ]; then
  source "/.snapshots/grub-snapshot.cfg"
fi
### END /etc/grub.d/80_suse_btrfs_snapshot ###
"""


def menu(*releases):
    """grub.cfg with these kernels, the first of which is what GRUB starts."""
    entries = [ENTRY.format(release=releases[0], more="", id="simple")]
    inner = "".join(ENTRY.format(release=one, more=f", with Linux {one}", id=f"{one}-advanced") for one in releases)
    return HEADER + "".join([*entries, SUBMENU, "\t" + inner.rstrip().replace("\n", "\n\t"), "\n}\n"]) + FOOTER


def environment(**variables):
    """grubenv, which has 1024 bytes."""
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    return ("# GRUB Environment Block\n" + lines).ljust(1024, "#")


def install(write, *releases, **variables):
    """Let ``write(path, text)`` lay down the boot loader with these kernels."""
    write(
        "etc/sysconfig/bootloader", '## Type: list(grub,grub2,grub2-efi,none)\nLOADER_TYPE="grub2"\nSECURE_BOOT="yes"\n'
    )
    write("boot/grub2/grub.cfg", menu(*releases))
    write("boot/grub2/grubenv", environment(**variables))
    for release in releases:
        write(f"boot/vmlinuz-{release}", "")
