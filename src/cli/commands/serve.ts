import type { Command } from '../command.ts'
import type { Compose } from '../run-service.ts'
import { serviceFlags, settingsFor } from '../service-flags.ts'

/** The command that runs the service. `loadCompose` brings the composition root, which no other command needs. */
export function serveCommand(loadCompose: () => Promise<Compose>): Command {
  return {
    name: 'serve',
    summary: 'run the service until SIGTERM or SIGINT',
    maxPositionals: 0,
    flags: serviceFlags,
    details: `Signals: SIGTERM and SIGINT stop the service in order, a second one at once; SIGUSR1 goes on to the next log level
(info, debug, trace); SIGHUP opens the audit log anew: the configuration is read at the start. Pods go on in every case.
Under systemd (Type=notify) it reports when it is ready and, with WatchdogSec=, that it is alive.`,
    async run(args) {
      const loaded = settingsFor(args)
      // Loaded here, so that the other commands answer at once.
      const { serveProcess } = await import('../serve-process.ts')
      return serveProcess(loaded, loadCompose)
    },
  }
}
