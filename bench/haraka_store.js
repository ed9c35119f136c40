// A Haraka plugin that takes every recipient, writes each message to a file, and syncs it before 250.
const fs = require('fs');
const path = require('path');

exports.hook_rcpt = (next) => next(OK);

exports.hook_queue = (next, connection) => {
    const file = path.join(process.env.STORE, connection.transaction.uuid);
    const out = fs.createWriteStream(file, { autoClose: false });
    out.on('error', (error) => next(DENYSOFT, error.message));
    out.on('finish', () =>
        fs.fsync(out.fd, (failed) => fs.close(out.fd, () => next(failed ? DENYSOFT : OK))));
    connection.transaction.message_stream.pipe(out);
};
