// node bench/stream-reader.ts URL…: opens exec URLs, says so once something has come from each, and throws away what comes until it is killed. A process of
// its own, so that reading does not slow whoever measures meanwhile.
import { once } from 'node:events'
import { asGo, openCommand } from '../test/fixtures/streaming/client.ts'

const commands = await Promise.all(process.argv.slice(2).map((url) => openCommand(url, 'spdy', { stdin: true, stdout: true }, asGo)))
await Promise.all(commands.map(({ stdout }) => once(stdout, 'data')))
for (const { stdout, status } of commands) {
  stdout.resume()
  status.catch(() => undefined)
}
console.log('reading')
