/** A service that pumps one container's stdout until it is killed: `node killed-service.fixture.ts FIFO LOG`. */
import { pino } from 'pino'
import { IoWorker } from './client.ts'

const [, , stdoutFifo, logPath] = process.argv
const io = await IoWorker.start({ log: pino({ level: 'silent' }) })
await io.openLog({ id: 'c', stdoutFifo, stderrFifo: undefined, logPath, maxLineBytes: 16384, recover: true })
io.started('c')
process.stdout.write('pumping\n')
