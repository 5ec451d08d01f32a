import { type LoadedSettings, loadSettings } from '../config/load-settings.ts'
import type { Arguments, Flag } from './command.ts'

/** The flags that choose and override the configuration. Each wins over what the file says. */
export const serviceFlags = {
  config: { type: 'string', value: 'FILE', help: 'configuration file (default: /etc/cri-shim/config.toml, else /etc/containerd/config.toml)' },
  listen: { type: 'string', value: 'ADDRESS', help: 'CRI socket to serve on, unix:///run/cri-shim/cri-shim.sock' },
  containerd: { type: 'string', value: 'ADDRESS', help: 'socket of containerd, unix:///run/containerd/containerd.sock' },
  root: { type: 'string', value: 'DIR', help: 'directory for what survives a reboot' },
  state: { type: 'string', value: 'DIR', help: 'directory for what does not' },
  'metrics-address': { type: 'string', value: 'ADDRESS', help: 'HOST:PORT of /metrics, /healthz and /readyz; "" for none' },
  'log-level': { type: 'string', value: 'LEVEL', help: 'trace, debug, info, warn, error or fatal; SIGUSR1 changes it at run time' },
} as const satisfies Record<string, Flag>

/** The settings under these flags. Throws a ConfigError. */
export function settingsFor({ flags }: Arguments): LoadedSettings {
  return loadSettings({
    file: flags['config'],
    overrides: {
      listen: flags['listen'], containerd: flags['containerd'], root: flags['root'], state: flags['state'],
      metricsAddress: flags['metrics-address'], logLevel: flags['log-level'],
    },
  })
}
