/** What the text of the default profile depends on. */
export interface ApparmorProfileFacts {
  /** The profile that containerd's shims (and so the runtime) run under: they signal containers. `unconfined` as a rule. */
  readonly managerProfile: string
  /** Which of the files of /etc/apparmor.d that the profile would include are installed. */
  readonly abi: boolean
  readonly tunables: boolean
  readonly abstractions: boolean
}

/**
 * The text of the profile behind RuntimeDefault, for apparmor_parser. It lets a container do what Docker's and containerd's default profiles let
 * it do: everything but what reaches the kernel's own files, and mounting. Without the distribution's tunables it says itself where /proc is.
 */
export function apparmorProfileText(name: string, { managerProfile, abi, tunables, abstractions }: ApparmorProfileFacts): string {
  const signallers = [...new Set(['unconfined', 'runc', 'crun', managerProfile])]
  return [
    ...(abi ? ['abi <abi/3.0>,'] : []),
    tunables ? '#include <tunables/global>' : '@{PROC}=/proc/',
    '',
    `profile ${name} flags=(attach_disconnected,mediate_deleted) {`,
    ...(abstractions ? ['  #include <abstractions/base>'] : []),
    '  network,',
    '  capability,',
    '  file,',
    '  umount,',
    '  # The node, the runtime and what manages it stop containers.',
    ...signallers.map((peer) => `  signal (receive) peer=${peer},`),
    '  # Among themselves.',
    `  signal (send,receive) peer=${name},`,
    `  ptrace (trace,tracedby,read,readby) peer=${name},`,
    '',
    '  deny mount,',
    '  # Of /proc: files at its top, directories that are no process, sysctls but those of shared memory.',
    '  deny @{PROC}/* w,',
    '  deny @{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w,',
    '  deny @{PROC}/sys/[^k]** w,',
    '  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,',
    '  deny @{PROC}/sysrq-trigger rwklx,',
    '  deny @{PROC}/kcore rwklx,',
    '  # Of /sys: everything but its cgroups; some of it not even for reading.',
    '  deny /sys/[^f]*/** wklx,',
    '  deny /sys/f[^s]*/** wklx,',
    '  deny /sys/fs/[^c]*/** wklx,',
    '  deny /sys/fs/c[^g]*/** wklx,',
    '  deny /sys/fs/cg[^r]*/** wklx,',
    '  deny /sys/firmware/** rwklx,',
    '  deny /sys/devices/virtual/powercap/** rwklx,',
    '  deny /sys/kernel/security/** rwklx,',
    '}',
    '',
  ].join('\n')
}

/** The profile out of /proc/PID/attr/current (`name (enforce)`); `unconfined` where AppArmor says nothing. */
export function profileOfAttribute(text: string): string {
  const name = text.replace(/\0.*$/s, '').trim().split(' ')[0] ?? ''
  // What could end the rule that it is put into is no name of ours to repeat.
  return /^[\w./:@{}*?+-]+$/.test(name) ? name : 'unconfined'
}

/** The names in /sys/kernel/security/apparmor/profiles, one `name (mode)` a line. */
export function loadedProfiles(text: string): ReadonlySet<string> {
  return new Set(text.split('\n').filter((line) => line !== '').map((line) => line.replace(/ \([a-z]+\)$/, '')))
}
