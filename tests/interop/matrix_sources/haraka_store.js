// A Haraka plugin that takes every recipient and writes each message to a file.
const fs = require('fs');
const path = require('path');

exports.hook_rcpt = (next) => next(OK);

exports.hook_queue = (next, connection) => {
    const file = path.join(process.env.MAIL, connection.transaction.uuid);
    const out = fs.createWriteStream(`${file}.tmp`);
    out.on('error', (error) => next(DENYSOFT, error.message));
    out.on('finish', () => {
        fs.renameSync(`${file}.tmp`, file);
        next(OK);
    });
    connection.transaction.message_stream.pipe(out);
};

// Of a client that has logged in
exports.hook_queue_outbound = exports.hook_queue;
